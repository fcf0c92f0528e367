#!lua
-- Makes a connection a member of a room.
-- KEYS: tombstone, members, index of the incarnation, generations, last clearing, marker of a foreign leave
-- ARGV: incarnation, connection, room
-- Reply: {1 if it was none before, generation}. Cost: O(1).
local number = string.format('%.0f', generation(KEYS[4], ARGV[3], KEYS[5]))
redis.call('HSET', KEYS[4], ARGV[3], number)
local new = redis.call('HSET', KEYS[2], ARGV[2], ARGV[1])
redis.call('SADD', KEYS[3], ARGV[2] .. '\0' .. ARGV[3])
redis.call('DEL', KEYS[6])
return { new, number }
