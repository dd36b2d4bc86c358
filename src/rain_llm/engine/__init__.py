"""The engine: answer prompts with guarded text."""

from rain_llm.engine.rain import Rain as Rain
