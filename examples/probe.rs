use osc::rpc::{Client, Stream, wire::agent::*, wire::google::Empty};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
fn main() {
    let path = std::env::args().nth(1).unwrap();
    let t = Instant::now();
    let s = loop { match UnixStream::connect(&path) { Ok(s) => break s, Err(_) => std::thread::sleep(Duration::from_millis(2)) } };
    let c = Client::new(Stream::from(s));
    let r: HealthCheckResponse = c.call("grpc.Health", "Check", &CheckRequest::default(), Some(Duration::from_secs(20))).unwrap();
    println!("health {} after {:?}", r.status, t.elapsed());
    let d: GuestDetailsResponse = c.call("grpc.AgentService", "GetGuestDetails", &GuestDetailsRequest::default(), Some(Duration::from_secs(20))).unwrap();
    println!("{d:?}");
    let t = Instant::now();
    for _ in 0..100 { let _: HealthCheckResponse = c.call("grpc.Health", "Check", &CheckRequest::default(), Some(Duration::from_secs(20))).unwrap(); }
    println!("call {:?}", t.elapsed() / 100);
    let m: Metrics = c.call("grpc.AgentService", "GetMetrics", &GetMetricsRequest {}, Some(Duration::from_secs(20))).unwrap();
    for l in m.metrics.lines().filter(|l| l.contains("agent_t") || l.contains("memavail") || l.contains("memtotal")) { println!("{l}"); }
    if std::env::args().nth(2).as_deref() == Some("off") {
        let _: Empty = c.call("grpc.AgentService", "DestroySandbox", &DestroySandboxRequest {}, Some(Duration::from_secs(20))).unwrap();
        println!("destroyed");
    }
}
