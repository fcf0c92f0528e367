#!lua flags=allow-oom
-- Lets go of leases and claims; the format and the birth go with the last of them.
-- KEYS: leases, dying, format, birth
-- ARGV: "incarnation instance"…
-- Reply: 1. Cost: O(log instances) each.
for _, member in ipairs(ARGV) do
  redis.call('ZREM', KEYS[1], member)
  redis.call('ZREM', KEYS[2], member)
end
if redis.call('EXISTS', KEYS[1], KEYS[2]) == 0 then
  redis.call('DEL', KEYS[3], KEYS[4])
end
return 1
