-- Creates an inbox unless there is one.
-- Keys: the inbox. Arguments: the stream ID, and the commit time in µs since 1970.
create_stream(KEYS[1], unpack(ARGV))
return 1
