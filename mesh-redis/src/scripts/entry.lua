-- What speaks against entering a key space: nil, or the format it has. A format is a version and, with sharded topics,
-- a word that says so. The version has to be the same; the word too, while anybody's lease lasts.
local function refusal(found, wanted, leases, now)
  if not found or found == wanted then
    return nil
  end
  local same = string.match(found, '^%S+') == string.match(wanted, '^%S+')
  if same and redis.call('ZCOUNT', leases, now, '+inf') == 0 then
    return nil
  end
  return found
end
