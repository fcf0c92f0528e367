#!lua flags=allow-oom
-- Ends memberships that still belong to an incarnation that is over.
-- KEYS: index of the incarnation, generations, room documents, then the members of each membership's room
-- ARGV: incarnation, then for each: connection, room
-- Reply: for each 1 if it was ended here, else 0. Cost: O(memberships), at most 1 000 a call.
local ended = {}
for at = 1, #KEYS - 3 do
  local id, room, members = ARGV[at * 2], ARGV[at * 2 + 1], KEYS[at + 3]
  ended[at] = 0
  if redis.call('HGET', members, id) == ARGV[1] then
    redis.call('HDEL', members, id)
    forget(KEYS[2], KEYS[3], room, members)
    ended[at] = 1
  end
  redis.call('SREM', KEYS[1], id .. '\0' .. room)
end
return ended
