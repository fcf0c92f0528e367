#!lua flags=no-writes
-- One page of the fields of a hash, without its values.
-- KEYS: hash. ARGV: cursor, about how many
-- Reply: {next cursor or '0', {field…}}. Cost: O(page).
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local fields = {}
for at = 1, #page[2], 2 do
  fields[#fields + 1] = page[2][at]
end
return { page[1], fields }
