#!lua flags=allow-oom
-- States connections again: writes what is missing or older, and tells what is stored in a newer revision. Where
-- another document has the stated revision, a failover lost a change and another took its number: what is stored
-- counts, in the next revision, and is told. All of them belong to this incarnation from now on.
-- KEYS: tombstone, connections, index of the incarnation, then for each connection its marker of a foreign document
-- ARGV: incarnation, then for each: connection, revision, document (empty for none)
-- Reply: connection, revision, document of each that is newer by now. Cost: O(connections), at most 512 a call.
local newer = {}
for at = 1, #KEYS - 3 do
  local id, revision, document = ARGV[at * 3 - 1], ARGV[at * 3], ARGV[at * 3 + 1]
  local best, told = tonumber(revision), false
  local stored = redis.call('HGET', KEYS[2], id)
  for _, other in ipairs({ stored and string.sub(stored, 18) or false, redis.call('GET', KEYS[at + 3]) }) do
    if other then
      local number, text = string.match(other, '^(%d+) (.*)$')
      local found = tonumber(number)
      if found == best and text ~= document then
        found = best + 1
        number = string.format('%.0f', found)
      end
      if found > best then
        best, revision, document, told = found, number, text, true
      end
    end
  end
  redis.call('HSET', KEYS[2], id, ARGV[1] .. ' ' .. revision .. ' ' .. document)
  redis.call('SADD', KEYS[3], id)
  if told then
    newer[#newer + 1] = id
    newer[#newer + 1] = revision
    newer[#newer + 1] = document
  end
end
return newer
