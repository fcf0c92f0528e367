#!lua flags=no-writes
-- Some of the records that were deleted longer ago.
-- KEYS: deleted records
-- ARGV: how long ago in ms, how many at most
-- Reply: records. Cost: O(log deleted records, and what is told).
local time = redis.call('TIME')
local before = time[1] * 1000 + math.floor(time[2] / 1000) - ARGV[1]
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. string.format('%.0f', before), 'LIMIT', 0, ARGV[2])
