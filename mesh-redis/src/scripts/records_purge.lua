#!lua flags=allow-oom
-- Forgets records that were deleted longer ago and have no value since.
-- KEYS: deleted records, then the records
-- ARGV: how long ago in ms, then the names of the records
-- Reply: how many were forgotten. Cost: O(records), at most 512 a call.
local time = redis.call('TIME')
local before = time[1] * 1000 + math.floor(time[2] / 1000) - ARGV[1]
local purged = 0
for at = 2, #ARGV do
  local deleted = redis.call('ZSCORE', KEYS[1], ARGV[at])
  if deleted and tonumber(deleted) < before then
    redis.call('DEL', KEYS[at])
    redis.call('ZREM', KEYS[1], ARGV[at])
    purged = purged + 1
  end
end
return purged
