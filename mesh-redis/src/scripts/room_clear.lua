#!lua flags=allow-oom
-- Removes a room's members and document, begins its next generation and tells the instances that listen to the room.
-- Those take their members out of the indexes.
-- KEYS: tombstone, members, generations, room documents, last clearing
-- ARGV: room, seconds that the clearing is remembered, 'PUBLISH' | 'SPUBLISH', the room's topic, head of the notice
-- Reply: the generation. Cost: O(1); the members' memory is freed in the background.
local time = redis.call('TIME')
local number = math.max(generation(KEYS[3], ARGV[1], KEYS[5]) + 1, time[1] * 1000000 + time[2])
number = string.format('%.0f', number)
redis.call('SET', KEYS[5], number, 'EX', ARGV[2])
redis.call('UNLINK', KEYS[2])
redis.call('HDEL', KEYS[4], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call(ARGV[3], ARGV[4], ARGV[5] .. 'cleared ' .. number)
return number
