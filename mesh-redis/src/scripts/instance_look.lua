#!lua flags=no-writes
-- Tells what speaks against joining the instances that run.
-- KEYS: leases, format
-- ARGV: the format that is wanted
-- Reply: the format that is there, where it speaks against it; else nil. Cost: O(log instances).
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return refusal(redis.call('GET', KEYS[2]), ARGV[1], KEYS[1], now)
