#!lua flags=no-writes
-- The versions of records of one partition.
-- KEYS: records
-- ARGV: none
-- Reply: number, stamp of each. Cost: O(records), at most 512 a call.
local versions = {}
for at, key in ipairs(KEYS) do
  local stored = redis.call('HMGET', key, 'n', 's')
  versions[at * 2 - 1] = stored[1] or '0'
  versions[at * 2] = stored[2] or '0'
end
return versions
