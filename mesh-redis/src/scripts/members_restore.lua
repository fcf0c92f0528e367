#!lua flags=allow-oom
-- States memberships again, except for those that are over: the room was cleared since, or the member was removed by
-- another instance.
-- KEYS: tombstone, generations, index of the incarnation, then for each membership: the room's members, its last
--   clearing, the marker of a foreign leave
-- ARGV: incarnation, then for each: room, connection, generation
-- Reply: the positions of those that are over, from 0. Cost: O(memberships), at most 512 a call.
local ended = {}
for at = 0, (#ARGV - 1) / 3 - 1 do
  local room, id, stated = ARGV[at * 3 + 2], ARGV[at * 3 + 3], tonumber(ARGV[at * 3 + 4])
  local members, cleared, left = KEYS[at * 3 + 4], KEYS[at * 3 + 5], KEYS[at * 3 + 6]
  local number = generation(KEYS[2], room, cleared)
  if number > stated or redis.call('EXISTS', left) == 1 then
    ended[#ended + 1] = at
  else
    -- Not what was stated: only a clearing begins a generation, and others may be members of an older one by now.
    redis.call('HSETNX', KEYS[2], room, string.format('%.0f', number))
    redis.call('HSET', members, id, ARGV[1])
    redis.call('SADD', KEYS[3], id .. '\0' .. room)
  end
end
return ended
