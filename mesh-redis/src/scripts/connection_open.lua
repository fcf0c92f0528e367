#!lua
-- Registers a connection; one that is there keeps its document, and belongs to this incarnation from now on.
-- KEYS: tombstone, connections, index of the incarnation
-- ARGV: incarnation, connection, document (empty for none)
-- Reply: 1. Cost: O(1).
local stored = redis.call('HGET', KEYS[2], ARGV[2])
local document = stored and string.sub(stored, 18) or '1 ' .. ARGV[3]
redis.call('HSET', KEYS[2], ARGV[2], ARGV[1] .. ' ' .. document)
redis.call('SADD', KEYS[3], ARGV[2])
return 1
