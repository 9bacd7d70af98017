-- Asks for the stored answers at random; the first argument after `--` says how many there are. Each request has an id of
-- its own, so that none is answered because its bytes were seen before.
dofile((os.getenv("PEERS_DIR") or ".") .. "/done.lua")

local entries, head, tail
local number = 0

init = function(args)
   entries = tonumber(args[1])
   math.randomseed(os.time())
   -- Rendered once: wrk.format for every request would cost the load's core more than it has.
   local text = wrk.format("GET", "/v1/parameters?size=1024&entry=@")
   head, tail = text:match("^(.-)@(.*)\r\n$")
end

request = function()
   number = number + 1
   return head .. math.random(0, entries - 1) .. tail .. "X-Request-Id: " .. number .. "\r\n\r\n"
end
