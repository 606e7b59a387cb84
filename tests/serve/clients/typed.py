"""Clients that have no microphone and ask for a reply: `python typed.py URL`."""

import asyncio
import sys

from livekit.agents import Agent, AgentSession
from livekit.plugins import openai
from yours import show
from yours_livekit import Speaker


async def main() -> None:
    for model in (openai.realtime.GPTLiveModel, openai.realtime.RealtimeModel):
        session = AgentSession(llm=model(base_url=sys.argv[1], api_key="any"))
        session.output.audio = Speaker()
        said: asyncio.Queue[str] = asyncio.Queue()

        @session.on("conversation_item_added")
        def added(event, said=said) -> None:
            if event.item.type == "message" and event.item.role == "assistant":
                said.put_nowait(event.item.text_content)

        await session.start(Agent(instructions="kind"))
        session.generate_reply(instructions="seven")
        show(model.__name__, await asyncio.wait_for(said.get(), 15))
        await session.aclose()


asyncio.run(main())
