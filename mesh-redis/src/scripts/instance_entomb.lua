#!lua flags=allow-oom
-- Ends an incarnation in one partition: whatever carries it changes nothing any more.
-- KEYS: tombstone. ARGV: seconds that it stands
-- Reply: 1. Cost: O(1).
redis.call('SET', KEYS[1], '1', 'EX', ARGV[1])
return 1
