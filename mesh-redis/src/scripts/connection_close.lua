#!lua flags=allow-oom
-- Removes a connection with its document; its memberships are removed by `members_remove` in their partitions.
-- KEYS: tombstone, connections, index of the incarnation, marker of a foreign document
-- ARGV: connection
-- Reply: 1. Cost: O(1).
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('SREM', KEYS[3], ARGV[1])
redis.call('DEL', KEYS[4])
return 1
