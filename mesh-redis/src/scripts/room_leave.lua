#!lua flags=allow-oom
-- Ends a membership. One that another instance ends leaves a marker, so that its owner does not state it again, and its
-- owner is told.
-- KEYS: tombstone, members, generations, room documents, marker of a foreign leave, index of the incarnation
-- ARGV: connection, room, seconds that the marker lives or 0 where the connection is the caller's own, the owner's topic,
--   head of the notice
-- Reply: 1 if there was one, else 0. Cost: O(1).
local left = redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('SREM', KEYS[6], ARGV[1] .. '\0' .. ARGV[2])
if ARGV[3] ~= '0' then
  redis.call('SET', KEYS[5], '1', 'EX', ARGV[3])
end
if left == 1 then
  forget(KEYS[3], KEYS[4], ARGV[2], KEYS[2])
  if ARGV[3] ~= '0' then
    redis.call('PUBLISH', ARGV[4], ARGV[5] .. 'left ' .. ARGV[1] .. '\0' .. ARGV[2])
  end
end
return left
