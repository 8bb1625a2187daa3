"""Tests of prompt lists."""
