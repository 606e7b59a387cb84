"""Clients that a server refuses: `python refused.py SECONDS URL...` starts each kind for each address, and waits."""

import asyncio
import contextlib
import sys

from livekit.agents import Agent, AgentSession
from livekit.plugins import openai
from pipecat.frames.frames import LLMRunFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.runner import PipelineRunner
from pipecat.pipeline.task import PipelineTask
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.services.openai.live.llm import OpenAILiveLLMService
from yours_livekit import Microphone, Speaker


async def livekit(model) -> None:
    session = AgentSession(llm=model)
    session.input.audio, session.output.audio = Microphone(), Speaker()
    await session.start(Agent(instructions="be kind"))


async def pipecat(url: str) -> None:
    llm = OpenAILiveLLMService(api_key="wrong", base_url=url.replace("http", "ws") + "/live/sessions")
    both = LLMContextAggregatorPair(LLMContext())
    task = PipelineTask(Pipeline([both.user(), llm, both.assistant()]))
    await task.queue_frames([LLMRunFrame()])
    await PipelineRunner(handle_sigint=False).run(task)


async def main() -> None:
    seconds, *urls = sys.argv[1:]
    running = []
    for url in urls:
        for model in (openai.realtime.GPTLiveModel, openai.realtime.RealtimeModel):
            running.append(livekit(model(base_url=url, api_key="wrong")))
        running.append(pipecat(url))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(float(seconds)):
            print(await asyncio.gather(*running, return_exceptions=True))
            await asyncio.sleep(float(seconds))
    print("done", flush=True)


asyncio.run(main())
