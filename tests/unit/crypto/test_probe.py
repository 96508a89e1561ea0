"""The probe of AF_ALG: availability, correctness, speed, and the reported reason."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from esp_gw.crypto import openssl, probe
from esp_gw.crypto.measure import Measure, Sealer
from esp_gw.crypto.probe import choose
from esp_gw.errors import EngineError
from esp_gw.model import SUITES, KeyMaterial
from tests.support.fake_af_alg import CHACHA, GCM, FakeKernel, install

BY_GCM = {name for name, suite in SUITES.items() if suite.cipher != "chacha20-poly1305"}
LIBRARY_NS = {64: 1000, 576: 2000, 1400: 5000}


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    return install(monkeypatch)


class Timed(Sealer):
    """A machine on which sealing takes a time set by the test."""

    def measure(self) -> Measure:
        def measure(provider: str, suite: str, size: int, packets: int) -> float:
            return (AF_ALG_NS if provider == "af-alg" else LIBRARY_NS)[size]

        return measure


AF_ALG_NS: dict[int, float] = {}
SEALER = Timed(native=False)


def set_times(small: float, middle: float, large: float) -> None:
    AF_ALG_NS.update({64: small, 576: middle, 1400: large})


def test_the_known_answers_match_openssl() -> None:
    for suite in SUITES.values():
        keymat = KeyMaterial(bytes(range(1, suite.key_len + 1)), probe._NONCE[:4])
        out = memoryview(bytearray(len(probe._PLAINTEXT) + suite.icv_len))
        openssl.make_aead(suite, keymat).seal_into(probe._NONCE, probe._PLAINTEXT, probe._AAD, out)
        assert bytes.fromhex(probe._SEALED[suite.cipher, suite.key_len]).startswith(out)


@pytest.mark.parametrize(
    ("times", "taken"),
    [
        ((1500, 1500, 2000), True),
        ((3000, 1500, 2500), True),  # small packets are slower, the sum is faster
        ((6000, 1500, 2000), False),  # small packets lose what full ones gain
        ((100, 100, 5000), False),  # full packets are slower
        ((1000, 2000, 4800), False),  # within noise
        ((9000, 9000, 9000), False),
    ],
)
def test_it_is_used_if_it_is_faster_at_the_sizes_that_matter(
    kernel: FakeKernel, times: tuple[float, float, float], taken: bool
) -> None:
    set_times(*times)
    verdicts = choose("auto", SEALER)
    assert verdicts.keys() == SUITES.keys()
    for verdict in verdicts.values():
        assert verdict.in_use is taken
        assert (verdict.library, verdict.library_ns) == ("openssl", (1000, 2000, 5000))
        assert verdict.af_alg_ns == times
        listed = "/".join(f"{time / 1000:.1f}" for time in times)
        assert verdict.why == (
            f"AF_ALG takes {listed} us, openssl 1.0/2.0/5.0 us for 64/576/1400 bytes"
        )
    assert kernel.open == 0


def test_the_python_engine_measures_its_own_way_to_the_kernel(kernel: FakeKernel) -> None:
    verdicts = choose("auto", Sealer(native=False))
    for verdict in verdicts.values():
        assert len(verdict.af_alg_ns) == len(verdict.library_ns) == 3
        assert min(*verdict.af_alg_ns, *verdict.library_ns) > 0
    assert kernel.open == 0


@pytest.mark.parametrize("wanted", ["auto", "on"])
def test_a_suite_whose_algorithm_is_missing_is_left_to_openssl(
    kernel: FakeKernel, wanted: str
) -> None:
    set_times(1, 1, 1)
    kernel.offers = {GCM}
    verdicts = choose(wanted, SEALER)
    assert {name for name, verdict in verdicts.items() if verdict.in_use} == BY_GCM
    assert f"no {CHACHA}" in verdicts["chacha20poly1305"].why
    assert "ENOENT" in verdicts["chacha20poly1305"].why


@pytest.mark.parametrize("code", [errno.EAFNOSUPPORT, errno.EPERM])
def test_if_it_is_unavailable_auto_uses_openssl_and_on_is_an_error(
    kernel: FakeKernel, code: int
) -> None:
    kernel.refuses["socket"] = code
    for verdict in choose("auto", SEALER).values():
        assert not verdict.in_use
        assert errno.errorcode[code] in verdict.why
    with pytest.raises(EngineError, match=errno.errorcode[code]) as caught:
        choose("on", SEALER)
    assert "crypto.offload: auto" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_known_answer_rules_it_out(kernel: FakeKernel) -> None:
    set_times(1, 1, 1)
    kernel.answer = lambda answer: answer[:-1] + bytes((answer[-1] ^ 1,))
    for verdict in choose("auto", SEALER).values():
        assert not verdict.in_use
        # With GMAC the text is in clear in the answer, so a change is detected at once.
        assert "wrong answers" in verdict.why or "changed a text" in verdict.why
    kernel.answer = lambda answer: answer[:-1]
    for verdict in choose("auto", SEALER).values():
        assert not verdict.in_use
    assert kernel.open == 0


def test_a_kernel_that_accepts_a_forged_packet_is_ruled_out(kernel: FakeKernel) -> None:
    set_times(1, 1, 1)
    kernel.accepts_all = True
    for verdict in choose("auto", SEALER).values():
        assert not verdict.in_use
        assert "accepts a forged packet" in verdict.why


def test_a_kernel_that_refuses_an_authentic_packet_is_ruled_out(kernel: FakeKernel) -> None:
    set_times(1, 1, 1)
    kernel.refuses["recvmsg"] = errno.EBADMSG
    for verdict in choose("auto", SEALER).values():
        assert not verdict.in_use


@pytest.mark.usefixtures("kernel")
def test_a_kernel_that_refuses_while_it_is_measured_is_not_used() -> None:
    class Refused(Sealer):
        def measure(self) -> Measure:
            def measure(provider: str, suite: str, size: int, packets: int) -> float:
                if provider == "af-alg":
                    raise OSError(errno.EPERM, "Operation not permitted")
                return 1

            return measure

    for verdict in choose("auto", Refused(native=False)).values():
        assert verdict == replace(verdict, in_use=False, why="Operation not permitted")


def test_switched_off_it_is_not_probed(kernel: FakeKernel) -> None:
    kernel.refuses["socket"] = errno.EDOM
    for verdict in choose("off", SEALER).values():
        assert (verdict.in_use, verdict.why) == (False, "switched off")


def test_switched_on_it_is_not_measured(kernel: FakeKernel) -> None:
    set_times(9e9, 9e9, 9e9)
    for verdict in choose("on", SEALER).values():
        assert (verdict.in_use, verdict.why) == (True, "switched on")
