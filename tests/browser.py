"""A headless Chromium that tests look at pages with, over its debugging protocol."""

import base64
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE, DESKTOP = (390, 844), (1280, 900)


def found() -> str | None:
  """The program, if there is one; LTJAX_CHROMIUM names another."""
  return os.environ.get("LTJAX_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
  """One page at a time: `open` it, `run` JavaScript in it; `errors` are what its console has said since."""

  def __init__(self):
    import websocket

    self._folder, self._numbers, self.errors = tempfile.TemporaryDirectory(), itertools.count(1), []
    self._process = subprocess.Popen(
        [found(), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0",
         "--remote-allow-origins=*", "--disable-dev-shm-usage", "--no-first-run",
         f"--user-data-dir={self._folder.name}", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    port = pathlib.Path(self._folder.name) / "DevToolsActivePort"
    deadline = time.monotonic() + 60
    while not (port.exists() and port.read_text().count("\n")):
      if self._process.poll() is not None or time.monotonic() > deadline:
        raise RuntimeError("Chromium does not start")
      time.sleep(0.05)
    number, path = port.read_text().splitlines()
    self._socket = websocket.create_connection(f"ws://127.0.0.1:{number}{path}", timeout=60)
    target = self._call("Target.createTarget", url="about:blank")["targetId"]
    self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
      self._call(f"{domain}.enable")

  def close(self) -> None:
    """Ends the browser and its children."""
    self._socket.close()
    os.killpg(self._process.pid, signal.SIGKILL)
    self._process.wait()
    self._folder.cleanup()

  def open(self, path: pathlib.Path, size: tuple[int, int] = DESKTOP, dark: bool = False) -> None:
    """Opens a file, and waits until all of it is loaded."""
    width, height = size
    self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
               mobile=size == PHONE)
    self._call("Emulation.setEmulatedMedia",
               features=[dict(name="prefers-color-scheme", value="dark" if dark else "light")])
    self.errors.clear()
    self._call("Page.navigate", url=path.resolve().as_uri())
    while self.run("document.readyState") != "complete" or self.run("location.href") == "about:blank":
      time.sleep(0.02)

  def run(self, script: str):
    """The value of an expression in the page."""
    answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
    if "exceptionDetails" in answer:
      raise RuntimeError(answer["exceptionDetails"])
    return answer["result"].get("value")

  def screenshot(self, path: pathlib.Path, first: int = 0, height: int | None = None) -> None:
    """A picture of the page, from `first` pixels below its top on."""
    width, total = self.run("[innerWidth, document.documentElement.scrollHeight]")
    clip = dict(x=0, y=first, width=width, height=min(height or total, total - first), scale=1)
    data = self._call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
    path.write_bytes(base64.b64decode(data))

  def _call(self, method: str, **parameters) -> dict:
    number = next(self._numbers)
    session = {"sessionId": self._session} if hasattr(self, "_session") else {}
    self._socket.send(json.dumps(dict(id=number, method=method, params=parameters) | session))
    while True:
      message = json.loads(self._socket.recv())
      if message.get("id") == number:
        if "error" in message:
          raise RuntimeError(f"{method}: {message['error']}")
        return message["result"]
      self._note(message)

  def _note(self, message: dict) -> None:
    """Remembers an error, a warning, and a request for anything that is not in the page itself."""
    method, parameters = message.get("method"), message.get("params", {})
    if method == "Runtime.exceptionThrown":
      self.errors.append(str(parameters["exceptionDetails"]))
    elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
      self.errors.append(str(parameters["args"]))
    elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
      self.errors.append(parameters["entry"]["text"])
    elif method == "Network.requestWillBeSent" and not parameters["request"]["url"].startswith(("file:", "data:")):
      self.errors.append(f"asked for {parameters['request']['url']}")
