#!lua
-- Keeps a message for an instance that has no lease, until it comes back.
-- KEYS: leases, kept messages
-- ARGV: instance, message, how many are kept at most, seconds that they are
-- Reply: 1; 0 where it has a lease, and nothing is kept. Cost: O(instances).
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%.0f', now), '+inf')) do
  if string.sub(member, 18) == ARGV[1] then
    return 0
  end
end
redis.call('RPUSH', KEYS[2], ARGV[2])
redis.call('LTRIM', KEYS[2], -ARGV[3], -1)
redis.call('EXPIRE', KEYS[2], ARGV[4])
return 1
