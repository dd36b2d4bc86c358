"""The engine: text in, guarded text out."""

from rain_llm.engine.rain import Rain as Rain
