"""Steps that are not finite are skipped, then undone, then given up; empty scenes are an error."""

import pytest

from nerf_bridge.errors import RunError
from nerf_bridge.run.health import (
    EMPTY_OPACITY,
    RESTORES,
    SKIPS_IN_A_ROW,
    Action,
    EmptyGuard,
    StepGuard,
    judge_opacity,
    judge_step,
)


def actions(guard: StepGuard, finite: list[bool]) -> tuple[StepGuard, list[Action]]:
    taken = []
    for good in finite:
        guard, action = judge_step(guard, good)
        taken.append(action)
    return guard, taken


def test_a_bad_step_is_skipped_and_counted():
    guard, taken = actions(StepGuard(), [True, False, True, False, False, True])
    assert [action.value for action in taken] == ["apply", "skip", "apply", "skip", "skip", "apply"]
    assert guard == StepGuard(in_a_row=0, skipped=3, restores=0, rate=1.0)


def test_bad_steps_in_a_row_restore_at_a_lower_rate():
    guard, taken = actions(StepGuard(), [False] * SKIPS_IN_A_ROW)
    assert taken == [Action.SKIP] * (SKIPS_IN_A_ROW - 1) + [Action.RESTORE]
    assert guard == StepGuard(in_a_row=0, skipped=SKIPS_IN_A_ROW, restores=1, rate=0.5)


def test_bad_steps_apart_never_restore():
    _, taken = actions(StepGuard(), ([False] * (SKIPS_IN_A_ROW - 1) + [True]) * 20)
    assert Action.RESTORE not in taken


def test_it_ends_with_a_clear_failure():
    guard, taken = actions(StepGuard(), [False] * (SKIPS_IN_A_ROW * (RESTORES + 1) - 1))
    assert taken.count(Action.RESTORE) == RESTORES and guard.rate == 0.5**RESTORES
    with pytest.raises(RunError, match=r"not finite.*20 steps.*try another seed"):
        judge_step(guard, False)


def test_a_scene_empty_for_long_is_an_error():
    guard = EmptyGuard()
    for step in range(0, 60, 10):
        guard = judge_opacity(guard, step, 0.0, patience=60)
    assert guard == EmptyGuard(since=0)
    with pytest.raises(RunError, match=r"scene is empty.*since step 0.*weight_opacity"):
        judge_opacity(guard, 60, 0.0, patience=60)


def test_a_scene_that_comes_back_is_forgiven():
    guard = judge_opacity(EmptyGuard(), 10, 0.0, patience=60)
    guard = judge_opacity(guard, 20, EMPTY_OPACITY, patience=60)
    assert guard == EmptyGuard()
    guard = judge_opacity(guard, 60, float("nan"), patience=60)
    assert guard == EmptyGuard(since=60)
    assert judge_opacity(guard, 110, 0.0, patience=60) == EmptyGuard(since=60)
