#!lua flags=allow-oom
-- Renews a lease and the caller's claims, tells when the next of the others' ends, and hands out the incarnations
-- whose lease has ended to a caller that may clean up.
-- KEYS: leases, dying
-- ARGV: the caller ("incarnation instance"), length of a lease and of a claim in ms, 1 if it may clean up, how many
--   at most, then its claims ("incarnation instance")…
-- Reply: {'dead'} where the caller has no lease; else {'alive', ms until the next end, newly claimed…}, where -1 is
--   none, and what one that may not clean up gets.
-- Cost: O(log instances), and the claims.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  return { 'dead' }
end
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
for at = 6, #ARGV do
  redis.call('ZADD', KEYS[2], 'XX', now + ARGV[3], ARGV[at])
end
local reply = { 'alive', -1 }
if ARGV[4] ~= '1' then
  return reply
end
for _, key in ipairs(KEYS) do
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, ARGV[5])) do
    redis.call('ZREM', KEYS[1], member)
    redis.call('ZADD', KEYS[2], now + ARGV[3], member)
    reply[#reply + 1] = member
  end
end
for _, key in ipairs(KEYS) do
  -- The caller's own lease was renewed last: it stands first only where nobody's ends before it.
  local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  if first[1] and first[1] ~= ARGV[1] then
    local wait = math.max(first[2] - now, 0)
    if reply[2] < 0 or wait < reply[2] then
      reply[2] = wait
    end
  end
end
return reply
