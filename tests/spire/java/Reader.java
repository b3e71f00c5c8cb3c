import java.io.FileInputStream;
import java.io.InputStream;
import java.net.InetAddress;
import java.security.KeyStore;
import java.security.cert.X509Certificate;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.FutureTask;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLServerSocket;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.TrustManagerFactory;

/**
 * A program as users write them in Java, with nothing but what Java has: it serves TLS from a key store, calls itself, and
 * both sides have to show a certificate that the trust store vouches for.
 *
 * <p>{@code java Reader.java KEYSTORE TRUSTSTORE TYPE} prints who was called, and by whom.
 */
final class Reader {
    private static final char[] PASSWORD = "changeit".toCharArray();

    public static void main(String[] arguments) throws Exception {
        KeyStore keys = load("PKCS12", arguments[0]);
        KeyStore roots = load(arguments[2], arguments[1]);
        for (String alias : Collections.list(roots.aliases())) {
            if (!roots.isCertificateEntry(alias)) {
                throw new IllegalStateException(alias + " is no certificate that is trusted");
            }
        }
        KeyManagerFactory key = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
        key.init(keys, PASSWORD);
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(roots);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(key.getKeyManagers(), trust.getTrustManagers(), null);

        InetAddress here = InetAddress.getLoopbackAddress();
        try (SSLServerSocket server = (SSLServerSocket) context.getServerSocketFactory().createServerSocket(0, 1, here)) {
            server.setNeedClientAuth(true);
            Callable<String> serving = () -> {
                try (SSLSocket caller = (SSLSocket) server.accept()) {
                    String who = peer(caller);
                    caller.getOutputStream().write('.');
                    return who;
                }
            };
            FutureTask<String> served = new FutureTask<>(serving);
            Thread thread = new Thread(served);
            thread.setDaemon(true);
            thread.start();
            try (SSLSocket call = (SSLSocket) context.getSocketFactory().createSocket(here, server.getLocalPort())) {
                String called = peer(call);
                if (call.getInputStream().read() != '.') {
                    throw new IllegalStateException("the server has hung up");
                }
                System.out.println(called + " " + served.get() + " " + roots.size());
            }
        }
    }

    private static KeyStore load(String type, String path) throws Exception {
        KeyStore store = KeyStore.getInstance(type);
        try (InputStream file = new FileInputStream(path)) {
            store.load(file, PASSWORD);
        }
        return store;
    }

    /** The one URI in the peer's certificate, once it has been verified. */
    private static String peer(SSLSocket socket) throws Exception {
        X509Certificate leaf = (X509Certificate) socket.getSession().getPeerCertificates()[0];
        for (List<?> name : leaf.getSubjectAlternativeNames()) {
            if (name.get(0).equals(6)) {
                return (String) name.get(1);
            }
        }
        throw new IllegalStateException("the certificate has no URI");
    }

    private Reader() {}
}
