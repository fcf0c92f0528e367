#!lua flags=allow-oom
-- Removes one connection of the caller from rooms of one partition.
-- KEYS: tombstone, index of the incarnation, generations, room documents, then for each room its members and the
--   connection's marker of a foreign leave
-- ARGV: connection, rooms…
-- Reply: 1. Cost: O(rooms), at most 512 a call.
for at = 2, #ARGV do
  local members = KEYS[at * 2 + 1]
  redis.call('SREM', KEYS[2], ARGV[1] .. '\0' .. ARGV[at])
  redis.call('DEL', KEYS[at * 2 + 2])
  if redis.call('HDEL', members, ARGV[1]) == 1 then
    forget(KEYS[3], KEYS[4], ARGV[at], members)
  end
end
return 1
