//! Owns exec and attach independently of the wire: copying between a runtime session and a client, and the status
//! that ends it (`v4.channel.k8s.io` and later). The SPDY side lives here too; WebSocket in [`super::websocket`].

use std::time::Duration;

use bytes::Bytes;
use proa_runtime::{BoxedRead, RuntimeError, Session as RuntimeSession, TerminalSize};
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::spdy::{self, SpdyError, Stream};

/// How long a SPDY client may take to open its streams (kubelet's streamCreationTimeout).
const STREAM_TIMEOUT: Duration = Duration::from_secs(30);

/// From the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    Stdin(Bytes),
    StdinEnd,
    Resize(TerminalSize),
}

/// To the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outgoing {
    Stdout(Bytes),
    Stderr(Bytes),
    /// the last word: a metav1.Status as JSON
    Status(Bytes),
}

/// A client, whatever the wire is. A closed `incoming` says that it is gone.
pub(crate) struct Wire {
    pub(crate) incoming: mpsc::Receiver<Incoming>,
    pub(crate) outgoing: mpsc::Sender<Outgoing>,
}

/// Streams a client asked for, from the query of its request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) tty: bool,
    pub(crate) command: Vec<String>,
}

impl Request {
    /// From a query, with the kubelet's names (`input`, `output`, `error`) or the API's (`stdin` …).
    pub(crate) fn parse(query: &[(String, String)]) -> Result<Self, String> {
        let mut request = Self::default();
        for (name, value) in query {
            let yes = matches!(value.as_str(), "1" | "true" | "True");
            match name.as_str() {
                "input" | "stdin" => request.stdin |= yes,
                "output" | "stdout" => request.stdout |= yes,
                "error" | "stderr" => request.stderr |= yes,
                "tty" => request.tty |= yes,
                "command" => request.command.push(value.clone()),
                _ => {}
            }
        }
        // A terminal has one output.
        request.stderr &= !request.tty;
        if !(request.stdin || request.stdout || request.stderr) {
            return Err("you must specify at least 1 of stdin, stdout, stderr".to_owned());
        }
        Ok(request)
    }
}

/// `{"Width":80,"Height":24}`, as clients send it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct WireSize {
    width: u16,
    height: u16,
}

/// A terminal size from the wire.
pub(crate) fn size(bytes: &[u8]) -> Option<TerminalSize> {
    let size: WireSize = serde_json::from_slice(bytes).ok()?;
    Some(TerminalSize { width: size.width, height: size.height })
}

/// The status a finished command ends with.
pub(crate) fn status(result: &Result<i32, RuntimeError>) -> Bytes {
    let value = match result {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => non_zero(*code),
        Err(RuntimeError::Exec { code, message }) => {
            let mut value = non_zero(*code);
            value["message"] = format!("error executing command in container: {message}").into();
            value
        }
        Err(error) => json!({
            "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
            "message": format!("Internal error occurred: {error}"),
            "details": {"causes": [{"message": error.to_string()}]}
        }),
    };
    value.to_string().into()
}

fn non_zero(code: i32) -> serde_json::Value {
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}
    })
}

/// Copies between a session and its client until the process ends or the client leaves.
pub(crate) async fn serve(mut session: RuntimeSession, wire: Wire) {
    let Wire { mut incoming, outgoing } = wire;
    let control = session.control.clone();
    let stdin = session.stdin.take();
    let output = tokio::spawn(copy(session.stdout.take(), outgoing.clone(), Outgoing::Stdout));
    let errors = tokio::spawn(copy(session.stderr.take(), outgoing.clone(), Outgoing::Stderr));
    let (bytes, input) = mpsc::channel::<Option<Bytes>>(16);
    // A process that does not read its input must not keep resizes and the client's leaving from being seen.
    let feeder = tokio::spawn(feed(stdin, input));
    let resizer = control.clone();
    let client = async move {
        let mut bytes = Some(bytes);
        while let Some(message) = incoming.recv().await {
            match message {
                Incoming::Stdin(chunk) => {
                    if let Some(bytes) = &bytes {
                        // A closed input is the process's choice, not an error.
                        let _ = bytes.send(Some(chunk)).await;
                    }
                }
                Incoming::StdinEnd => bytes = None,
                Incoming::Resize(size) => {
                    if let Err(error) = resizer.resize(size).await {
                        tracing::debug!(%error, "terminal not resized");
                    }
                }
            }
        }
    };
    tokio::select! {
        result = control.wait() => {
            // What was written before the end is sent before the status. A child that keeps the pipe open does
            // not hold the answer back for long.
            let rest = async { let _ = tokio::join!(output, errors); };
            if tokio::time::timeout(Duration::from_secs(2), rest).await.is_err() {
                tracing::debug!("output still open after the command's end");
            }
            let _ = outgoing.send(Outgoing::Status(status(&result))).await;
        }
        () = client => {
            if let Err(error) = control.kill().await {
                tracing::debug!(%error, "a command whose client left was not killed");
            }
        }
    }
    feeder.abort();
}

async fn feed(stdin: Option<proa_runtime::BoxedWrite>, mut input: mpsc::Receiver<Option<Bytes>>) {
    let Some(mut stdin) = stdin else { return };
    while let Some(Some(chunk)) = input.recv().await {
        if stdin.write_all(&chunk).await.is_err() || stdin.flush().await.is_err() {
            return;
        }
    }
    // End of file for the process; it may have closed its side already.
    let _ = stdin.shutdown().await;
}

async fn copy(stream: Option<BoxedRead>, outgoing: mpsc::Sender<Outgoing>, wrap: fn(Bytes) -> Outgoing) {
    let Some(mut stream) = stream else { return };
    let mut buffer = vec![0; 32 * 1024];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        if outgoing.send(wrap(Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
            return;
        }
    }
}

/// A client over SPDY: waits for the streams it announced and ties them together.
pub(crate) async fn over_spdy<S>(io: S, request: &Request) -> Result<Wire, SpdyError>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut session = spdy::Session::start(io)?;
    let mut wanted = vec!["error"];
    for (asked, name) in
        [(request.stdin, "stdin"), (request.stdout, "stdout"), (request.stderr, "stderr"), (request.tty, "resize")]
    {
        if asked {
            wanted.push(name);
        }
    }
    let mut streams: Vec<(String, Stream)> = Vec::new();
    let gather = async {
        while wanted.iter().any(|name| !streams.iter().any(|(n, _)| n == name)) {
            match session.accept().await {
                Some(stream) => {
                    let kind = stream.header("streamtype").unwrap_or_default().to_owned();
                    streams.push((kind, stream));
                }
                None => return false,
            }
        }
        true
    };
    match tokio::time::timeout(STREAM_TIMEOUT, gather).await {
        Ok(true) => {}
        Ok(false) => return Err(SpdyError::Frame("the connection ended before its streams were open")),
        Err(_) => return Err(SpdyError::Frame("timed out waiting for client to create streams")),
    }
    let (sender, incoming) = mpsc::channel(16);
    let (outgoing, mut messages) = mpsc::channel::<Outgoing>(16);
    let mut writers = Vec::new();
    for (kind, stream) in streams {
        let Stream { mut data, writer, .. } = stream;
        let sender = sender.clone();
        match kind.as_str() {
            "stdin" => {
                tokio::spawn(async move {
                    while let Some(bytes) = data.recv().await {
                        if sender.send(Incoming::Stdin(bytes)).await.is_err() {
                            return;
                        }
                    }
                    let _ = sender.send(Incoming::StdinEnd).await;
                });
            }
            "resize" => {
                tokio::spawn(async move {
                    let mut text = Vec::new();
                    while let Some(bytes) = data.recv().await {
                        text.extend_from_slice(&bytes);
                        while let Some(end) = text.iter().position(|b| *b == b'}') {
                            let one: Vec<u8> = text.drain(..=end).collect();
                            if let Some(size) = size(&one)
                                && sender.send(Incoming::Resize(size)).await.is_err()
                            {
                                return;
                            }
                        }
                    }
                });
            }
            _ => {}
        }
        writers.push((kind, writer));
    }
    // The session ends when the connection does: that is how a client is seen to leave.
    tokio::spawn(async move {
        while session.accept().await.is_some() {}
        drop(sender);
    });
    tokio::spawn(async move {
        let find = |name: &str| writers.iter().find(|(kind, _)| kind == name).map(|(_, w)| w);
        while let Some(message) = messages.recv().await {
            let (name, bytes, last) = match message {
                Outgoing::Stdout(bytes) => ("stdout", bytes, false),
                Outgoing::Stderr(bytes) => ("stderr", bytes, false),
                Outgoing::Status(bytes) => ("error", bytes, true),
            };
            if let Some(writer) = find(name) {
                writer.send(bytes).await;
            }
            if last {
                break;
            }
        }
        for (_, writer) in &writers {
            writer.finish().await;
        }
    });
    Ok(Wire { incoming, outgoing })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::spdy::tests_client::{Client, Frame};
    use super::*;
    use futures::future::BoxFuture;
    use parking_lot::Mutex;
    use proa_runtime::SessionControl;
    use std::sync::Arc;
    use tokio::sync::watch;

    /// A process for tests: echoes its input, and ends with a code when the input ends.
    pub(crate) struct Echo {
        pub(crate) code: i32,
        pub(crate) sizes: Mutex<Vec<TerminalSize>>,
        over: watch::Sender<bool>,
    }

    impl SessionControl for Echo {
        fn resize(&self, size: TerminalSize) -> BoxFuture<'_, Result<(), RuntimeError>> {
            self.sizes.lock().push(size);
            Box::pin(async { Ok(()) })
        }

        fn wait(&self) -> BoxFuture<'_, Result<i32, RuntimeError>> {
            Box::pin(async {
                self.over.subscribe().wait_for(|o| *o).await.unwrap();
                Ok(self.code)
            })
        }

        fn kill(&self) -> BoxFuture<'_, Result<(), RuntimeError>> {
            self.over.send_replace(true);
            Box::pin(async { Ok(()) })
        }
    }

    pub(crate) fn echo(code: i32) -> (RuntimeSession, Arc<Echo>) {
        let (stdin, mut input) = tokio::io::duplex(4096);
        let (mut output, stdout) = tokio::io::duplex(4096);
        let control = Arc::new(Echo { code, sizes: Mutex::default(), over: watch::Sender::new(false) });
        let process = control.clone();
        tokio::spawn(async move {
            let _ = tokio::io::copy(&mut input, &mut output).await;
            drop(output);
            process.over.send_replace(true);
        });
        let session = RuntimeSession {
            stdin: Some(Box::new(stdin)),
            stdout: Some(Box::new(stdout)),
            stderr: None,
            control: control.clone(),
        };
        (session, control)
    }

    #[test]
    fn statuses_are_those_kubectl_reads() {
        let text = |r| String::from_utf8(status(&r).to_vec()).unwrap();
        assert_eq!(text(Ok(0)), r#"{"metadata":{},"status":"Success"}"#);
        let failed: serde_json::Value = serde_json::from_str(&text(Ok(3))).unwrap();
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
        let missing = RuntimeError::Exec { code: 127, message: "no such file".into() };
        let missing: serde_json::Value = serde_json::from_str(&text(Err(missing))).unwrap();
        assert_eq!(missing["details"]["causes"][0]["message"], "127");
    }

    #[test]
    fn requests_are_read_in_both_dialects() {
        let query = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
        };
        let request = Request::parse(&query(&[
            ("command", "sh"),
            ("command", "-c"),
            ("input", "1"),
            ("output", "1"),
            ("error", "1"),
            ("tty", "1"),
        ]))
        .unwrap();
        assert_eq!(
            request,
            Request { stdin: true, stdout: true, stderr: false, tty: true, command: vec!["sh".into(), "-c".into()] }
        );
        assert!(Request::parse(&query(&[("stdout", "true")])).unwrap().stdout);
        assert!(Request::parse(&query(&[])).is_err());
    }

    #[tokio::test]
    async fn a_spdy_client_talks_to_a_process_and_learns_its_exit_code() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let mut client = Client::new(near);
        for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "resize")] {
            client.open(id, &[("streamtype", kind)]).await;
        }
        let request = Request { stdin: true, stdout: true, tty: true, ..Request::default() };
        let wire = over_spdy(far, &request).await.unwrap();
        let (session, control) = echo(3);
        let served = tokio::spawn(serve(session, wire));
        client.data(7, r#"{"Width":80,"Height":24}"#, false).await;
        client.data(3, "hello", true).await;
        let (mut text, mut end) = (Vec::new(), Vec::new());
        loop {
            match client.next().await.unwrap() {
                Frame::Data { stream: 5, bytes, .. } => text.extend_from_slice(&bytes),
                Frame::Data { stream: 1, bytes, fin } => {
                    end.extend_from_slice(&bytes);
                    if fin {
                        break;
                    }
                }
                _ => {}
            }
        }
        assert_eq!(text, b"hello");
        assert!(String::from_utf8(end).unwrap().contains("\"message\":\"3\""));
        served.await.unwrap();
        assert_eq!(*control.sizes.lock(), [TerminalSize { width: 80, height: 24 }]);
    }

    #[tokio::test]
    async fn a_command_dies_with_its_client() {
        let (sender, incoming) = mpsc::channel(1);
        let (outgoing, _messages) = mpsc::channel(1);
        let (session, control) = echo(0);
        let served = tokio::spawn(serve(session, Wire { incoming, outgoing }));
        drop(sender);
        served.await.unwrap();
        assert!(*control.over.borrow());
    }
}
