#!lua
-- Tells whether an instance has no lease, and keeps a message for it until it comes back.
-- KEYS: leases, kept messages
-- ARGV: instance, how many are kept at most, seconds that they are, the message, if there is one to keep
-- Reply: 1; 0 where it has a lease, and nothing is kept; -1 where too many are. Cost: O(instances).
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%.0f', now), '+inf')) do
  if string.sub(member, 18) == ARGV[1] then
    return 0
  end
end
if ARGV[4] then
  if redis.call('LLEN', KEYS[2]) >= tonumber(ARGV[2]) then
    return -1
  end
  redis.call('RPUSH', KEYS[2], ARGV[4])
  redis.call('EXPIRE', KEYS[2], ARGV[3])
end
return 1
