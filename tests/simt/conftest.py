"""Reports what the emulator ran: ``pytest_terminal_summary`` of the conftest above prints it."""

import pytest
import simt


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    simt.LAUNCHES.clear()
    result = yield
    item.user_properties.append(("simt", [[n, list(map(list, k)), s] for n, k, s in simt.LAUNCHES]))
    return result
