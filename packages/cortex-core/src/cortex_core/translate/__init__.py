"""Every dialect to every engine: requests, answers and streams, without IO.

A request of any dialect becomes a chat completion request (`messages_to_chat`,
`responses_to_chat`), and a chat completion request becomes what an upstream of another dialect
takes (`chat_to_messages`). On the way back a reader turns the bytes of an upstream into part
events (`parts`), and a writer turns part events into the bytes of the caller's dialect; each
reader works with each writer.
"""
