#!lua
-- Changes a room's document; the room comes to be, or goes, with it.
-- KEYS: tombstone, members, generations, room documents, last clearing
-- ARGV: room, 'replace' | 'merge' | 'except', document, longest result in bytes, excepted keys…
-- Reply: {document, empty for none}; {'long', length}. Cost: O(1) commands, and a pass over both documents.
local except = {}
for at = 5, #ARGV do
  except[#except + 1] = ARGV[at]
end
local old = redis.call('HGET', KEYS[4], ARGV[1])
local result, long = changed(old or nil, ARGV[2], ARGV[3], tonumber(ARGV[4]), except)
if not result then
  return { 'long', tostring(long) }
end
if is_null(result) then
  redis.call('HDEL', KEYS[4], ARGV[1])
  forget(KEYS[3], KEYS[4], ARGV[1], KEYS[2])
  return { '' }
end
redis.call('HSET', KEYS[3], ARGV[1], string.format('%.0f', generation(KEYS[3], ARGV[1], KEYS[5])))
redis.call('HSET', KEYS[4], ARGV[1], result)
return { result }
