#!lua
-- Publishes a message on a channel and keeps it in the channel's history, newest first, as one step.
-- KEYS: history. ARGV: channel, message, how many messages are kept
-- Reply: how many connections of this node heard it. Cost: O(1) amortised, and the subscribers.
redis.call('LPUSH', KEYS[1], ARGV[2])
redis.call('LTRIM', KEYS[1], 0, ARGV[3] - 1)
return redis.call('PUBLISH', ARGV[1], ARGV[2])
