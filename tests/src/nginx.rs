//! Debian's nginx as the intranet server.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::process::{self, Process, free_port, wait_until};

/// A running nginx with plain HTTP and TLS with HTTP/2.
#[derive(Debug)]
pub struct Nginx {
    /// Plain HTTP.
    pub port: u16,
    /// TLS, HTTP/2 and HTTP/1.1.
    pub tls_port: u16,
    /// Plain HTTP that must begin with a PROXY header; answers with the address and port that stand in it.
    pub told_port: u16,
    folder: tempfile::TempDir,
    _process: Process,
}

impl Nginx {
    /// Starts it with one small page, `/page`, that says `words`.
    #[must_use]
    pub fn start(words: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path().display().to_string();
        for sub in ["www", "uploads", "tmp"] {
            std::fs::create_dir(folder.path().join(sub)).expect("a folder");
        }
        // nginx's workers may run as another user.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        for sub in ["", "uploads", "tmp"] {
            std::fs::set_permissions(folder.path().join(sub), Clone::clone(&open)).expect("permissions");
        }
        std::fs::write(folder.path().join("www/page"), words).expect("a page");
        let mut openssl = Command::new("openssl");
        openssl
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args([
                "-subj",
                "/CN=intranet.test",
                "-addext",
                "subjectAltName=DNS:intranet.test,DNS:*.names.test",
                "-keyout",
                &format!("{dir}/key.pem"),
                "-out",
                &format!("{dir}/cert.pem"),
            ]);
        let _ = process::run(&mut openssl, Duration::from_secs(20));
        let (port, tls_port, told_port) = (free_port(), free_port(), free_port());
        let has_six = std::net::TcpListener::bind("[::1]:0").is_ok();
        let six = if has_six { format!("listen [::1]:{port};") } else { String::new() };
        let config = format!(
            "daemon off; master_process off; worker_processes 1; pid {dir}/pid; error_log {dir}/error.log;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; default_type text/plain; sendfile on; root {dir}/www;\n\
               client_body_temp_path {dir}/uploads; proxy_temp_path {dir}/tmp; fastcgi_temp_path {dir}/tmp;\n\
               uwsgi_temp_path {dir}/tmp; scgi_temp_path {dir}/tmp;\n\
               ssl_certificate {dir}/cert.pem; ssl_certificate_key {dir}/key.pem;\n\
               ssl_protocols TLSv1.2 TLSv1.3;\n\
               server {{ listen 127.0.0.1:{port} backlog=1024; {six} listen 127.0.0.1:{tls_port} ssl http2 backlog=1024;\n\
                 location = /ok {{ return 200 \"ok\\n\"; }}\n\
                 location /upload {{ client_max_body_size 0; client_body_in_file_only on;\n\
                   proxy_pass_request_body off; proxy_set_header Content-Length \"\"; proxy_pass http://127.0.0.1:{port}/ok; }} }}\n\
               server {{ listen 127.0.0.1:{told_port} proxy_protocol;\n\
                 location / {{ return 200 \"$proxy_protocol_addr:$proxy_protocol_port\"; }} }} }}\n"
        );
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, config).expect("a configuration");
        let process = Process::start(
            Command::new("nginx").arg("-c").arg(&file).args(["-p", &dir]),
            &folder.path().join("out.log"),
        );
        wait_until("nginx listens", Duration::from_secs(10), || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { port, tls_port, told_port, folder, _process: process }
    }

    /// Puts a file of `size` pseudo-random bytes at `/NAME`; returns its SHA-256 in hexadecimal.
    #[must_use]
    pub fn put_file(&self, name: &str, size: u64) -> String {
        write_random(&self.folder.path().join("www").join(name), size)
    }

    /// Its certificate, PEM: self-made, for `intranet.test` and every name under `names.test`.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    /// SHA-256 and size of the one file that was uploaded.
    #[must_use]
    pub fn uploaded(&self) -> (String, u64) {
        let files: Vec<PathBuf> = std::fs::read_dir(self.folder.path().join("uploads"))
            .expect("the folder")
            .flatten()
            .map(|e| e.path())
            .collect();
        assert_eq!(files.len(), 1, "{files:?}");
        (sha256(&files[0]), files[0].metadata().expect("its size").len())
    }
}

/// Fills a file with bytes that do not compress; returns their SHA-256 in hexadecimal.
#[must_use]
pub fn write_random(path: &Path, size: u64) -> String {
    use std::io::{BufWriter, Write};
    let mut out = BufWriter::with_capacity(1 << 20, std::fs::File::create(path).expect("a file"));
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ size;
    let mut hash = Sha256::new();
    let mut block = vec![0; 1 << 20];
    let mut left = size;
    while left > 0 {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let n = usize::try_from(left.min(1 << 20)).expect("at most a MiB");
        hash.update(&block[..n]);
        out.write_all(&block[..n]).expect("room on the disk");
        left -= n as u64;
    }
    out.flush().expect("room on the disk");
    hex(&hash.finalize())
}

/// SHA-256 of a file in hexadecimal.
#[must_use]
pub fn sha256(path: &Path) -> String {
    let mut hash = Sha256::new();
    let mut file = std::fs::File::open(path).expect("the file");
    let mut block = vec![0; 1 << 20];
    loop {
        let n = std::io::Read::read(&mut file, &mut block).expect("the file");
        if n == 0 {
            return hex(&hash.finalize());
        }
        hash.update(&block[..n]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
