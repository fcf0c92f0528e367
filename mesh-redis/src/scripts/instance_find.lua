#!lua flags=no-writes
-- Tells whether an instance has a lease that lasts.
-- KEYS: leases
-- ARGV: instance
-- Reply: 1 or 0. Cost: O(instances).
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%.0f', now), '+inf')) do
  if string.sub(member, 18) == ARGV[1] then
    return 1
  end
end
return 0
