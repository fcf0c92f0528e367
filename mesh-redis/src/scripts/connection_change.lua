#!lua
-- Changes a connection's document and raises its revision. Its owner is told what another instance makes of it.
-- KEYS: tombstone, connections, marker of a foreign document
-- ARGV: connection, 'replace' | 'merge' | 'except', document, longest result in bytes, seconds that the marker lives
--   or 0 where the connection is the caller's own, the owner's topic, head of the notice, excepted keys…
-- Reply: {revision, document}; {'none'} where the connection is unknown; {'long', length}.
-- Cost: O(1) commands, and a pass over both documents.
local stored = redis.call('HGET', KEYS[2], ARGV[1])
if not stored then
  return { 'none' }
end
local incarnation, revision, old = string.match(stored, '^(%x+) (%d+) (.*)$')
local except = {}
for at = 8, #ARGV do
  except[#except + 1] = ARGV[at]
end
local result, long = changed(old ~= '' and old or nil, ARGV[2], ARGV[3], tonumber(ARGV[4]), except)
if not result then
  return { 'long', tostring(long) }
end
if is_null(result) then
  result = ''
end
revision = string.format('%.0f', tonumber(revision) + 1)
redis.call('HSET', KEYS[2], ARGV[1], incarnation .. ' ' .. revision .. ' ' .. result)
if ARGV[5] ~= '0' then
  redis.call('SET', KEYS[3], revision .. ' ' .. result, 'EX', ARGV[5])
  redis.call('PUBLISH', ARGV[6], ARGV[7] .. 'changed ' .. ARGV[1] .. '\0' .. revision .. ' ' .. result)
end
return { revision, result }
