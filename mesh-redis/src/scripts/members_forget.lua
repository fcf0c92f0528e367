#!lua flags=allow-oom
-- Takes memberships of a room that are over out of the caller's index.
-- KEYS: tombstone, members, index of the incarnation
-- ARGV: incarnation, room, connections…
-- Reply: for each connection 1 if it is a member after all, else 0. Cost: O(connections), at most 512 a call.
local members = {}
for at = 3, #ARGV do
  local is_member = redis.call('HGET', KEYS[2], ARGV[at]) == ARGV[1]
  if not is_member then
    redis.call('SREM', KEYS[3], ARGV[at] .. '\0' .. ARGV[2])
  end
  members[at - 2] = is_member and 1 or 0
end
return members
