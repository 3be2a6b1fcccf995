"""A logged-in iSCSI session with one connection and no error recovery (RFC 7143, ErrorRecoveryLevel 0).

What cannot be known is not guessed: once a command has been written, every way in which its answer can
fail to come (time-out, cancellation, lost connection, a rejected or unknown PDU) ends the session, and the
command's outcome is :class:`hactl.errors.Unknown`. Before that it is :class:`hactl.errors.Failed`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from hactl.errors import Failed, HactlError, Unknown
from hactl.pr_sync.initiator.login import Parameters
from hactl.pr_sync.initiator.pdu import (
    NO_TAG,
    AsyncMessage,
    DataIn,
    DataOut,
    FromTarget,
    LogoutRequest,
    LogoutResponse,
    NopIn,
    NopOut,
    Pdu,
    PduError,
    ReadyToTransfer,
    Reject,
    ScsiCommand,
    ScsiResponse,
)
from hactl.pr_sync.initiator.sense import Sense, SenseError, Status, decode_sense, encode_lun
from hactl.pr_sync.initiator.wire import Wire

_WRAP = 1 << 32


class _Event:
    """Asynchronous messages (RFC 7143 11.9.1)."""

    SENSE = 0
    LOGOUT = 1
    CONNECTION_ENDS = 2
    SESSION_ENDS = 3
    VENDOR = 248


@dataclass(frozen=True)
class Result:
    """A command that the target completed.

    ``sense`` only with CHECK CONDITION. ``residual``: bytes of the expected length that were not
    transferred, or, negative, bytes that would have been and found no room.
    """

    status: Status
    data: bytes = b""
    sense: Sense | None = None
    residual: int = 0

    def __str__(self) -> str:
        return f"{self.status} ({self.sense})" if self.sense else str(self.status)


@dataclass
class _Task:
    """A command that waits for its answer."""

    answer: asyncio.Future[Result]
    lun: bytes
    data_out: bytes
    expected: int
    data_in: bytearray = field(default_factory=bytearray)


def before(a: int, b: int) -> bool:
    """Whether sequence number ``a`` comes before ``b`` (RFC 1982 with 32 bits, as RFC 7143 4.2.2 asks)."""
    return a != b and (b - a) % _WRAP < _WRAP // 2


class Session:
    """Sends SCSI commands; made by :func:`hactl.pr_sync.initiator.connect.open_session`."""

    def __init__(
        self, wire: Wire, parameters: Parameters, *, name: str, cmd_sn: int, stat_sn: int, timeout: float
    ) -> None:
        """Take over a connection that has just finished its login.

        ``name`` is for messages. ``cmd_sn``: of the login. ``stat_sn``: the next one expected.
        """
        self.parameters = parameters
        self.name = name
        self._wire = wire
        self._timeout = timeout
        self._cmd_sn = cmd_sn
        # Until the target says otherwise there is room for one command: the login's number was not used up.
        self._exp_cmd_sn = self._max_cmd_sn = cmd_sn
        self._exp_stat_sn = stat_sn
        self._next_tag = 1
        self._tasks: dict[int, _Task] = {}
        self._window = asyncio.Event()
        self._leaving = False
        self._end: str | None = None
        self._logout: tuple[int, asyncio.Future[None]] | None = None
        self._reader = asyncio.create_task(self._read())

    @property
    def end(self) -> str | None:
        """Why no command can be sent any more, or None."""
        return self._end

    async def command(
        self,
        cdb: bytes,
        *,
        lun: int = 0,
        data_out: bytes = b"",
        data_in: int = 0,
        timeout: float | None = None,
    ) -> Result:
        """Send one command and wait for its answer.

        ``cdb``: up to 16 bytes. ``data_in``: the most bytes taken from the target; not both directions.
        ``timeout`` in seconds, else the session's. Cancelling it after the command was written ends the
        session. Raises :class:`Failed` (``iscsi-lost``) if it was never sent and :class:`Unknown`
        (``iscsi-lost``) if it was and no answer came.
        """
        if data_out and data_in:
            raise ValueError("a command moves data in one direction")
        if len(cdb) > 16:
            raise ValueError(f"a CDB of {len(cdb)} bytes")
        address = encode_lun(lun)
        limit = self._timeout if timeout is None else timeout
        tag: int | None = None
        try:
            async with asyncio.timeout(limit):
                await self._room()
                tag, task = self._send(cdb, address, data_out, data_in)
                await self._wire.drain()
                return await task.answer
        except TimeoutError:
            if tag is None:
                raise self._unsent(f"no room for another command within {limit:g} s") from None
            self._fail(f"no answer within {limit:g} s")
            raise self._unanswered() from None
        except OSError as error:
            self._fail(str(error))
            raise self._unanswered() from None
        except asyncio.CancelledError:
            if tag is not None:
                self._fail("a command was given up")
            raise
        finally:
            if tag is not None:
                # Cancelled, so that an exception set on it meanwhile is not reported as never retrieved.
                left = self._tasks.pop(tag).answer
                if not left.cancel() and not left.cancelled():
                    left.exception()

    async def logout(self, timeout: float = 2.0) -> None:
        """End the session in order if the target answers within ``timeout`` seconds, and in any case."""
        if self._end is None:
            answer = asyncio.get_running_loop().create_future()
            tag = self._tag()
            self._logout = tag, answer
            self._wire.write(
                LogoutRequest(tag=tag, immediate=True, cmd_sn=self._cmd_sn, exp_stat_sn=self._exp_stat_sn)
            )
            try:
                async with asyncio.timeout(timeout):
                    await self._wire.drain()
                    await answer
            except (TimeoutError, OSError):
                self._fail("the target did not answer a logout")
            except asyncio.CancelledError:
                self._fail("a logout was given up")
                raise
        await self.close()

    def abort(self, reason: str = "given up by this side") -> None:
        """End the session at once, with a reset of the connection; commands in flight are unknown."""
        self._fail(reason)

    async def close(self) -> None:
        """Wait until nothing of the session is left; ends it first if it has not ended."""
        self._fail("closed by this side")
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._wire.close()

    def _unsent(self, reason: str) -> HactlError:
        return Failed("iscsi-lost", f"{self.name}: {reason}; the command was not sent", "log in again")

    def _unanswered(self) -> HactlError:
        return Unknown(
            "iscsi-lost",
            f"{self.name}: {self._end}; a command that was sent may or may not have been carried out",
            "look at the state of the logical unit before sending it again",
        )

    def _tag(self) -> int:
        tag = self._next_tag
        self._next_tag = tag + 1 if tag < NO_TAG - 1 else 1
        return tag

    async def _room(self) -> None:
        """Wait for the command window (RFC 7143 4.2.2.1)."""
        while True:
            if self._end is not None:
                raise self._unsent(self._end)
            if self._leaving or self._logout is not None:
                raise self._unsent("the session is being logged out")
            if not before(self._max_cmd_sn, self._cmd_sn):
                return
            self._window.clear()
            await self._window.wait()

    def _send(self, cdb: bytes, lun: bytes, data_out: bytes, data_in: int) -> tuple[int, _Task]:
        parameters = self.parameters
        room = min(parameters.first_burst, parameters.max_send) if parameters.immediate_data else 0
        tag = self._tag()
        task = _Task(asyncio.get_running_loop().create_future(), lun, data_out, data_in)
        self._tasks[tag] = task
        # Never unsolicited data beyond the immediate ones: InitialR2T is always Yes.
        self._wire.write(
            ScsiCommand(
                data=data_out[:room],
                tag=tag,
                cmd_sn=self._cmd_sn,
                exp_stat_sn=self._exp_stat_sn,
                read=data_in > 0,
                write=bool(data_out),
                lun=lun,
                length=len(data_out) or data_in,
                cdb=cdb.ljust(16, b"\0"),
            )
        )
        self._cmd_sn = (self._cmd_sn + 1) % _WRAP
        return tag, task

    def _fail(self, reason: str) -> None:
        """End the session, once; whoever waits for it learns so."""
        if self._end is not None:
            return
        self._end = reason
        self._wire.abort()
        self._window.set()
        for task in self._tasks.values():
            if not task.answer.done():
                task.answer.set_exception(self._unanswered())
        if self._logout is not None and not self._logout[1].done():
            self._logout[1].set_result(None)
        if self._reader is not asyncio.current_task():
            self._reader.cancel()

    async def _read(self) -> None:
        reason = "the session ended"
        try:
            while self._end is None:
                self._take(await self._wire.read())
        except EOFError:
            reason = "the target closed the connection"
        except (OSError, PduError, SenseError) as error:
            reason = str(error)
        finally:
            # Whatever else it was, nobody may be left waiting for a reader that is gone.
            self._fail(reason)

    def _take(self, pdu: Pdu) -> None:
        if not isinstance(pdu, FromTarget):
            raise PduError(f"{type(pdu).__name__} from a target")
        self._count(pdu)
        match pdu:
            case DataIn():
                self._data_in(pdu)
            case ScsiResponse():
                self._response(pdu)
            case ReadyToTransfer():
                self._transfer(pdu)
            case NopIn():
                self._pong(pdu)
            case AsyncMessage():
                self._message(pdu)
            case Reject():
                raise PduError(f"the target rejected a PDU, reason 0x{pdu.reason:02x}")
            case LogoutResponse():
                self._logged_out(pdu)
            case _:
                raise PduError(f"{type(pdu).__name__} after login")

    def _count(self, pdu: FromTarget) -> None:
        """Follow StatSN and the command window (RFC 7143 4.2.2)."""
        carries_status = {DataIn: isinstance(pdu, DataIn) and pdu.has_status, ReadyToTransfer: False}
        asks = isinstance(pdu, NopIn) and pdu.tag == NO_TAG
        if carries_status.get(type(pdu), not asks):
            if pdu.stat_sn != self._exp_stat_sn:
                # Without error recovery there is nobody to ask for what is missing.
                raise PduError(f"StatSN {pdu.stat_sn} instead of {self._exp_stat_sn}")
            self._exp_stat_sn = (self._exp_stat_sn + 1) % _WRAP
        if before(pdu.max_cmd_sn, (pdu.exp_cmd_sn - 1) % _WRAP):
            return
        if before(self._exp_cmd_sn, pdu.exp_cmd_sn):
            self._exp_cmd_sn = pdu.exp_cmd_sn
        if before(self._max_cmd_sn, pdu.max_cmd_sn):
            self._max_cmd_sn = pdu.max_cmd_sn
            self._window.set()

    def _task(self, tag: int) -> _Task:
        task = self._tasks.get(tag)
        if task is None or task.answer.done():
            raise PduError(f"an answer to no command (tag {tag})")
        return task

    def _data_in(self, pdu: DataIn) -> None:
        task = self._task(pdu.tag)
        # DataPDUInOrder and DataSequenceInOrder are Yes: each begins where the last one ended.
        if pdu.offset != len(task.data_in) or pdu.offset + len(pdu.data) > task.expected:
            raise PduError(f"{len(pdu.data)} bytes at {pdu.offset} of {task.expected}")
        task.data_in += pdu.data
        if pdu.has_status:
            self._complete(task, pdu, None)

    def _response(self, pdu: ScsiResponse) -> None:
        task = self._task(pdu.tag)
        if pdu.response != 0:
            raise PduError(f"a command failed at the target, response 0x{pdu.response:02x}")
        sense = None
        if pdu.status == Status.CHECK_CONDITION:
            length = int.from_bytes(pdu.data[:2], "big")
            sense = decode_sense(pdu.data[2 : 2 + length])
        self._complete(task, pdu, sense)

    def _complete(self, task: _Task, pdu: DataIn | ScsiResponse, sense: Sense | None) -> None:
        try:
            status = Status(pdu.status)
        except ValueError:
            raise PduError(f"SCSI status 0x{pdu.status:02x}") from None
        residual = pdu.residual if pdu.underflow else -pdu.residual if pdu.overflow else 0
        task.answer.set_result(Result(status, bytes(task.data_in), sense, residual))

    def _transfer(self, pdu: ReadyToTransfer) -> None:
        task = self._task(pdu.tag)
        end = pdu.offset + pdu.length
        if not 0 < pdu.length <= self.parameters.max_burst or end > len(task.data_out):
            raise PduError(f"the target asks for {pdu.length} bytes at {pdu.offset} of {len(task.data_out)}")
        for number, offset in enumerate(range(pdu.offset, end, self.parameters.max_send)):
            stop = min(offset + self.parameters.max_send, end)
            self._wire.write(
                DataOut(
                    data=task.data_out[offset:stop],
                    tag=pdu.tag,
                    exp_stat_sn=self._exp_stat_sn,
                    final=stop == end,
                    lun=pdu.lun,
                    target_tag=pdu.target_tag,
                    data_sn=number,
                    offset=offset,
                )
            )

    def _pong(self, pdu: NopIn) -> None:
        if pdu.tag != NO_TAG:
            raise PduError("an answer to a ping that was not sent")
        if pdu.target_tag != NO_TAG:
            # An immediate one: it must not wait for room in the command window.
            self._wire.write(
                NopOut(
                    immediate=True,
                    cmd_sn=self._cmd_sn,
                    exp_stat_sn=self._exp_stat_sn,
                    lun=pdu.lun,
                    target_tag=pdu.target_tag,
                )
            )

    def _message(self, pdu: AsyncMessage) -> None:
        match pdu.event:
            case _Event.LOGOUT:
                # What is in flight may still end; the owner's next command fails, and it logs out.
                self._leaving = True
                self._window.set()
            case _Event.CONNECTION_ENDS | _Event.SESSION_ENDS:
                raise PduError("the target ends the session")
            case _Event.SENSE:
                pass  # The unit attention behind it comes in band, with the next command.
            case event if event < _Event.VENDOR:
                raise PduError(f"asynchronous message 0x{event:02x}")

    def _logged_out(self, pdu: LogoutResponse) -> None:
        if self._logout is None or pdu.tag != self._logout[0]:
            raise PduError("an answer to a logout that was not sent")
        if not self._logout[1].done():
            self._logout[1].set_result(None)
