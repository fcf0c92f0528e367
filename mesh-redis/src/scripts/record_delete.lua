#!lua flags=allow-oom
-- Takes a record's value away, which is its next version, and tells who listens.
-- KEYS: record, answer to this deletion, deleted records
-- ARGV: record, stamp, seconds that the answer is kept, 'PUBLISH' | 'SPUBLISH', the record's topic, head of the notice
-- Reply: the version's number; nil where nothing is stored. Cost: O(log deleted records).
local answer = redis.call('GET', KEYS[2])
if answer then
  return answer
end
if redis.call('HEXISTS', KEYS[1], 'd') == 0 then
  return nil
end
local stored = redis.call('HMGET', KEYS[1], 'n', 's')
local number = string.format('%.0f', stored[1] + 1)
redis.call('HDEL', KEYS[1], 'd')
redis.call('HSET', KEYS[1], 'n', number, 's', ARGV[2])
local time = redis.call('TIME')
redis.call('ZADD', KEYS[3], time[1] * 1000 + math.floor(time[2] / 1000), ARGV[1])
redis.call('SET', KEYS[2], number, 'EX', ARGV[3])
redis.call(ARGV[4], ARGV[5], ARGV[6] .. 'versions ' .. stored[1] .. ' ' .. stored[2] .. '\0' .. ARGV[2] .. ' d')
return number
