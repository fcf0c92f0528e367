-- Refuses an incarnation that is over in this partition. KEYS[1] is its tombstone, as in every script that writes.
-- So a write that was under way while its instance was judged dead, or cut off, changes nothing any more.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return redis.error_reply('MESHDEAD this incarnation is over')
end
