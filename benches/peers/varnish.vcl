# Varnish as a cache in front of dify-api. @…@ is filled in by the measuring program, which also chooses the start
# options (threads, storage, HTTP/2) and says why.
vcl 4.1;

backend origin {
    .host = "127.0.0.1";
    .port = "@ORIGIN@";
    # Idle connections to the origin are kept for reuse by default.
    .first_byte_timeout = 60s;
    .between_bytes_timeout = 300s;
}

sub vcl_recv {
    # The built-in rules would pass whatever has Authorization; here it is a part of the key.
    if (req.method == "GET" && req.url ~ "^/v1/parameters") {
        return (hash);
    }
    return (pass);
}

# The built-in rules add the URL and the host.
sub vcl_hash {
    hash_data(req.http.Authorization);
}

sub vcl_backend_response {
    if (!bereq.uncacheable) {
        set beresp.ttl = 24h;
        set beresp.grace = 0s;
    }
    return (deliver);
}
