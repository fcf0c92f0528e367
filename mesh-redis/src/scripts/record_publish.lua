#!lua
-- Makes consecutive versions of a record, if the stored one is the one that they start from, and tells who listens.
-- KEYS: record, answer to these updates, deleted records
-- ARGV: record, number and stamp that they start from, seconds that the answer is kept, 'PUBLISH' | 'SPUBLISH', the
--   record's topic, head of the notice, last value, then for each update: stamp, 'f' or 'p' and the text that subscribers
--   get, which of the last one may be just 'f'
-- Reply: {'ok', number of the first}; {'conflict', number, stamp, value if there is one}. Cost: O(updates).
local answer = redis.call('GET', KEYS[2])
if answer then
  return { 'ok', answer }
end
local stored = redis.call('HMGET', KEYS[1], 'n', 's')
local number, stamp = stored[1] or '0', stored[2] or '0'
if number ~= ARGV[2] or stamp ~= ARGV[3] then
  local conflict = { 'conflict', number, stamp }
  conflict[4] = redis.call('HGET', KEYS[1], 'd') or nil
  return conflict
end
local notice = { ARGV[7] .. 'versions ' .. number .. ' ' .. stamp }
for at = 9, #ARGV, 2 do
  local change = ARGV[at + 1]
  if change == 'f' then
    change = 'f' .. ARGV[8]
  end
  notice[#notice + 1] = ARGV[at] .. ' ' .. change
end
local first = string.format('%.0f', number + 1)
local last = string.format('%.0f', number + #notice - 1)
redis.call('HSET', KEYS[1], 'n', last, 's', ARGV[#ARGV - 1], 'd', ARGV[8])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('SET', KEYS[2], first, 'EX', ARGV[4])
redis.call(ARGV[5], ARGV[6], table.concat(notice, '\0'))
return { 'ok', first }
