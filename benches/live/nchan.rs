//! nginx with Nchan, on a loopback port, from a configuration of its own in the run's folder.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::{self, now_us};
use super::support::Process;
use super::{Clients, Options, Rate};

/// What an event says.
pub(crate) const CONTENT: &str = r#"{"text":"the canteen opens at noon today"}"#;

/// What clients of the engine get of it. Nchan is given the same.
const EVENT: &str = r#"{"data":{"text":"the canteen opens at noon today"},"id":"25852384-3","op":"message","table":"posduif:announcement","type":"announcement"}"#;

/// Where Debian's package puts the module.
const MODULE: &str = "/usr/lib/nginx/modules/ngx_nchan_module.so";

/// A running nginx.
pub(crate) struct Nchan {
    master: Child,
    pub(crate) address: SocketAddr,
}

impl Nchan {
    /// Starts it; `None` where it is not installed.
    pub(crate) async fn start(folder: &Path, workers: Option<usize>) -> Option<Self> {
        if !Path::new(MODULE).exists() {
            return None;
        }
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let folder = folder.join("nginx");
        std::fs::create_dir(&folder).unwrap();
        let configuration = format!(
            "load_module {MODULE};\n\
             daemon off;\n\
             user root;\n\
             worker_processes {};\n\
             worker_rlimit_nofile 20000;\n\
             error_log {folder}/error.log warn;\n\
             pid {folder}/pid;\n\
             events {{ worker_connections 19900; multi_accept on; }}\n\
             http {{\n\
               access_log off;\n\
               client_body_temp_path {folder}/body;\n\
               proxy_temp_path {folder}/proxy;\n\
               fastcgi_temp_path {folder}/fastcgi;\n\
               uwsgi_temp_path {folder}/uwsgi;\n\
               scgi_temp_path {folder}/scgi;\n\
               keepalive_requests 1000000;\n\
               nchan_shared_memory_size 256M;\n\
               server {{\n\
                 listen {address} backlog=4096;\n\
                 location = /sub {{ nchan_subscriber eventsource; nchan_channel_id all; nchan_subscriber_first_message newest; }}\n\
                 location = /pub {{ nchan_publisher; nchan_channel_id all; nchan_message_buffer_length 10; }}\n\
               }}\n\
             }}\n",
            workers.map_or("auto".to_owned(), |count| count.to_string()),
            folder = folder.display(),
        );
        let file = folder.join("nginx.conf");
        std::fs::write(&file, configuration).unwrap();
        let master = Command::new("nginx")
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .spawn()
            .ok()?;
        let nchan = Self { master, address };
        for _ in 0..500 {
            if TcpStream::connect(address).await.is_ok() {
                return Some(nchan);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("nginx does not listen; see {}", folder.display());
    }

    /// Master and workers.
    fn processes(&self) -> Vec<u32> {
        let master = self.master.id();
        let children = std::fs::read_to_string(format!("/proc/{master}/task/{master}/children")).unwrap_or_default();
        let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
        std::iter::once(master).chain(children).collect()
    }

    pub(crate) fn resident_kib(&self) -> u64 {
        self.processes()
            .into_iter()
            .map(|pid| Process::of(pid).resident_kib)
            .sum()
    }

    fn cpu(&self) -> Duration {
        self.processes().into_iter().map(|pid| Process::of(pid).cpu).sum()
    }

    /// So many events to all, each when all have the one before.
    pub(crate) async fn round(&self, options: &Options, clients: &mut Clients) -> Rate {
        let cpu = self.cpu();
        let mut rate = Rate::default();
        let mut publisher = TcpStream::connect(self.address).await.unwrap();
        publisher.set_nodelay(true).unwrap();
        let request = format!(
            "POST /pub HTTP/1.1\r\nHost: bench\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{EVENT}",
            EVENT.len()
        );
        for _ in 0..options.events {
            clients.tell(&client::Command::Forget);
            let begun = now_us();
            publisher.write_all(request.as_bytes()).await.unwrap();
            let events = options.connections as u64;
            rate.add(&clients.tell(&client::Command::Await { events }), begun, events);
            let mut answer = [0; 4096];
            let count = publisher.read(&mut answer).await.unwrap();
            assert!(answer[..count].starts_with(b"HTTP/1.1 20"), "nginx did not publish");
        }
        rate.cpu = self.cpu().saturating_sub(cpu);
        rate
    }
}

impl Drop for Nchan {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.master.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.master.wait();
    }
}
