-- The larger of a room's generation and that of its last clearing, which outlives it; 0 where it has neither.
local function generation(generations, room, cleared)
  local one = tonumber(redis.call('HGET', generations, room) or '0')
  local two = tonumber(redis.call('GET', cleared) or '0')
  return math.max(one, two)
end

-- Lets go of a room that has neither members nor metadata.
local function forget(generations, documents, room, members)
  if redis.call('EXISTS', members) == 0 and redis.call('HEXISTS', documents, room) == 0 then
    redis.call('HDEL', generations, room)
  end
end
