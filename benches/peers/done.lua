-- Prints what a run of wrk came to as one line of JSON, for the measuring program.
done = function(summary, latency, _)
   local e = summary.errors
   io.write(string.format(
      'SUMMARY {"requests":%d,"micros":%d,"bytes":%d,"errors":%d,"p99":%d}\n',
      summary.requests, summary.duration, summary.bytes,
      e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(99)))
end
