#!lua flags=allow-oom
-- Gives a new incarnation a lease, and takes the instance's earlier ones over for cleaning up.
-- KEYS: leases, dying, format, birth, messages kept for the instance
-- ARGV: instance, incarnation, length of a lease and of a claim in ms, format, earlier incarnations…
-- Reply: {'ok', the incarnation that found the key space empty, kept…}; {'format', the one that is there}; {'used', the incarnation}
--   where another one holds the instance's id. Cost: O(instances).
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local format = refusal(redis.call('GET', KEYS[3]), ARGV[5], KEYS[1], now)
if format then
  return { 'format', format }
end
local own = {}
for at = 6, #ARGV do
  own[ARGV[at]] = true
end
local leases = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for at = 1, #leases, 2 do
  local incarnation, instance = string.match(leases[at], '^(%x+) (.*)$')
  if instance == ARGV[1] and not own[incarnation] and tonumber(leases[at + 1]) > now then
    return { 'used', incarnation }
  end
end
for at = 6, #ARGV do
  local member = ARGV[at] .. ' ' .. ARGV[1]
  redis.call('ZREM', KEYS[1], member)
  redis.call('ZADD', KEYS[2], now + ARGV[4], member)
end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[2] .. ' ' .. ARGV[1])
redis.call('SET', KEYS[3], ARGV[5])
redis.call('SET', KEYS[4], ARGV[2], 'NX')
local reply = { 'ok', redis.call('GET', KEYS[4]) }
for _, message in ipairs(redis.call('LRANGE', KEYS[5], 0, -1)) do
  reply[#reply + 1] = message
end
return reply
