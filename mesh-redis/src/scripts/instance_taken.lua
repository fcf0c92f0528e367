#!lua flags=allow-oom
-- Lets go of messages that were kept for the caller, once it has them.
-- KEYS: leases, kept messages
-- ARGV: the caller ("incarnation instance"), how many it has
-- Reply: 1. Cost: O(messages).
if redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  redis.call('LTRIM', KEYS[2], ARGV[2], -1)
end
return 1
