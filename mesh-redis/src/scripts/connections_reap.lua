#!lua flags=allow-oom
-- Removes connections that still belong to an incarnation that is over.
-- KEYS: connections, index of the incarnation
-- ARGV: incarnation, connections…
-- Reply: how many were removed. Cost: O(connections), at most 1 000 a call.
local removed = 0
for at = 2, #ARGV do
  local stored = redis.call('HGET', KEYS[1], ARGV[at])
  if stored and string.sub(stored, 1, 16) == ARGV[1] then
    redis.call('HDEL', KEYS[1], ARGV[at])
    removed = removed + 1
  end
  redis.call('SREM', KEYS[2], ARGV[at])
end
return removed
