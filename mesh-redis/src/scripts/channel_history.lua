#!lua flags=no-writes
-- The newest messages of a channel's history, newest first.
-- KEYS: history
-- ARGV: how many at most, how long they may be together in bytes
-- Reply: the messages; 0 where they are longer, and no more of them is read than shows it. Cost: O(messages).
local PAGE = 32
local limit, left = tonumber(ARGV[1]), tonumber(ARGV[2])
local messages = {}
for first = 0, limit - 1, PAGE do
  local page = redis.call('LRANGE', KEYS[1], first, math.min(first + PAGE, limit) - 1)
  for _, message in ipairs(page) do
    left = left - #message
    messages[#messages + 1] = message
  end
  if left < 0 then
    return 0
  end
  if #page < PAGE then
    break
  end
end
return messages
