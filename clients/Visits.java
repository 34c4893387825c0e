// HttpsURLConnection and java.net.http.HttpClient: url|client URL N P.
import java.io.FileInputStream;
import java.net.URI;
import java.net.URL;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.util.ArrayList;
import javax.net.ssl.HttpsURLConnection;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

public class Visits {
    interface Visit {
        void make() throws Exception;
    }

    public static void main(String[] args) throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null, null);
        store.setCertificateEntry("ca", CertificateFactory.getInstance("X.509")
                .generateCertificate(new FileInputStream(System.getenv("CLIENT_CA"))));
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(store);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, trust.getTrustManagers(), null);

        HttpsURLConnection.setDefaultSSLSocketFactory(context.getSocketFactory());
        HttpClient client = HttpClient.newBuilder().sslContext(context).build();
        Visit visit = args[0].equals("url")
                ? () -> System.out.print(new String(new URL(args[1]).openStream().readAllBytes()))
                : () -> System.out.print(client.send(HttpRequest.newBuilder(URI.create(args[1])).build(),
                        HttpResponse.BodyHandlers.ofString()).body());

        for (int n = Integer.parseInt(args[2]); n > 0; n--) {
            visit.make();
        }
        ArrayList<Thread> threads = new ArrayList<>();
        for (int n = Integer.parseInt(args[3]); n > 0; n--) {
            threads.add(new Thread(() -> {
                try {
                    visit.make();
                } catch (Exception e) {
                    e.printStackTrace();
                }
            }));
        }
        for (Thread thread : threads) {
            thread.start();
        }
        for (Thread thread : threads) {
            thread.join();
        }
    }
}
